"""The configuration: its keys, reading it from files and the command line, and checking it.

Checks return messages that each name key, value and fix: `*_problems` what cannot work, `*_warnings` what works and is
likely not meant; whoever checks a whole run gathers them. Only reading (`load_config`) raises InputError.
"""
