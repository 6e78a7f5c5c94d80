"""The machinery of HTTP that every route shares."""
