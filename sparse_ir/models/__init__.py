"""How text becomes weighted terms, and what lies in a model folder."""
