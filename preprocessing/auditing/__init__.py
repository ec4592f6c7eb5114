"""Records -> figures and the page of an audit."""
