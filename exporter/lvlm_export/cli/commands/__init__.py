"""The commands of ``lvlm-export``, one module each; ``lvlm_export.cli.COMMANDS`` lists them.

A command module imports nothing heavy until its function runs, so that ``--help`` stays fast.
"""
