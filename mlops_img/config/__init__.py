"""Every key of every command, with its type, its default and its rule. Light to import."""
