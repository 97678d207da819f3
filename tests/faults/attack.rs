//! The receiver under attack: guessed keys, endless and bomb-like bodies, deep JSON, names that try to leave their folder.
