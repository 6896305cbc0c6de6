"""What is read from the source of the classes that a config names, with nothing imported."""
