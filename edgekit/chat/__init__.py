"""Talk to an engine in a terminal: the screen, the plain mode for pipes, files of a session."""
