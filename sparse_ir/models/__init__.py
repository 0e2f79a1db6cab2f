"""How does text become weighted terms, and what lies in a model folder?"""
