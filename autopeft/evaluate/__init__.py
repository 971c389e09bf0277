"""Training and measuring one candidate. The only room that imports torch, transformers and peft."""
