"""The `*.golf` artifact: entropy coder, container, export and reading back."""
