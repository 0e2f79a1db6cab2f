"""What may a training configuration say, and how is it read and written?"""
