"""How do weights become integer impacts, and impacts a verified index folder?"""
