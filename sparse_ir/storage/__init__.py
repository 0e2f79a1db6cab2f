"""How does a file become whole, or not there at all?"""
