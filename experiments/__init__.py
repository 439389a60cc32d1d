"""What the project is developed and judged with: the model zoo, recorded surfaces, comparisons."""
