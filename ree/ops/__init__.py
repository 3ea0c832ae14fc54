"""What each operator means: one definition, with its shape rule and its lowering beside it."""
