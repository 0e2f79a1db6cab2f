"""How does a training step, stop, resume and end?"""
