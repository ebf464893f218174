"""Who signs in: people, their roles and groups, sessions, links and personal access tokens."""
