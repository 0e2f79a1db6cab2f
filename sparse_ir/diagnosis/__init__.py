"""Is a model sane?"""
