"""The admin's command line: a pure client of the REST API."""
