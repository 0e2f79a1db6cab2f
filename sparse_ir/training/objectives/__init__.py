"""What does training minimise, and how strong is the penalty?"""
