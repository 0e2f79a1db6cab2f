"""The Lucene engine: the bridge to Java, terms, writing, reading and checking."""
