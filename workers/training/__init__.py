"""How the models were made: data, recipes, fitting, evaluation. Not needed to run the node."""
