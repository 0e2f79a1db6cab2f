"""The data: what are documents, queries, qrels and runs, and how are they read and written?"""
