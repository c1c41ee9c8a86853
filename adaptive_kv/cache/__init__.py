"""The cache: slabs cut into pages, formats that own their bytes, modes that plan, and switches.

Nothing here knows why the mode changed; nothing here imports the controller.
"""
