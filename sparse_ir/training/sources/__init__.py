"""Which texts are trained on, and in which batches?"""
