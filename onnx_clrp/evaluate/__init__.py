"""How well maps find what they should: the numbers of an evaluation on labelled images."""
