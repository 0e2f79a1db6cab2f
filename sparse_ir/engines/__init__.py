"""How do postings get into a search engine, and scores out of it?"""
