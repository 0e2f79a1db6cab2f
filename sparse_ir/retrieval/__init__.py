"""How does an index answer, how fast, and why in this order?"""
