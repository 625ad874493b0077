"""Diagnostics: how do we know?"""
