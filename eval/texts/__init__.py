"""Reads documents at paths, and scores them one by one."""
