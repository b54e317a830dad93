"""Files and folders: written whole or not at all, known by their content, kept in the cache, found in packages."""
