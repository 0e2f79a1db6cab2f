"""The leaderboard: how do measured systems become rows, and rows one table?"""
