"""Evaluation: how good is a run, and is the difference from another one more than chance?"""
