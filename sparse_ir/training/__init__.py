"""How is an encoder trained, and how is a training run made to end well?"""
