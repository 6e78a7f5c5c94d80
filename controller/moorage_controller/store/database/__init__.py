"""Database access: connections, transactions, migrations, encryption."""
