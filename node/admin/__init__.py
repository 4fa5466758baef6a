"""For the admin: command line, supervision, web pages."""
