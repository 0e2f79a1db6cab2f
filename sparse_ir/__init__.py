"""sparse_ir: learned-sparse retrieval, from text to a verified and measured Lucene impact index."""

__version__ = "0.1.0"
