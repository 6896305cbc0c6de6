"""What is wrong with a composed config: every check that needs nothing but the config and the libraries' signatures."""
