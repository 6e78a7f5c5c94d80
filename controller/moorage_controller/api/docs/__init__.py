"""The API's OpenAPI document, and its page."""
