"""What do teachers say about a query and a document?"""
