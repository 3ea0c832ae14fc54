"""The server: generations over HTTP in the form of OpenAI's API, each with a receipt."""
