"""How does an encoder compute with gradients, and how does it begin?"""
