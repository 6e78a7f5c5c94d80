"""Application services: business rules, transactions and audit."""
