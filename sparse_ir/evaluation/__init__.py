"""How good is a run, and is the difference to another one more than chance?"""
