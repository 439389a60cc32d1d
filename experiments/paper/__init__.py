"""The evaluation of the Morphling paper (SoCC 2021, section 6), run again on simulated surfaces of its spaces.

studies     which searches a figure needs; runs them, a line each in a JSON-lines file
charts      figures 6, 7 and 11 and the table of overheads, from those lines alone
planes      figures 4, 8, 9 and 10, which look at single models
published   what the paper's figures say, as far as it can be read off them
"""
