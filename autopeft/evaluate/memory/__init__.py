"""Peaks of live bytes, as the allocator reports them or as a tracker counts them."""
