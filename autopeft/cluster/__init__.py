"""Running a search: the loop, in-process and on Ray. The only room that imports ray."""
