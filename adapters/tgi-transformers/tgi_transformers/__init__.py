"""Models of transformers for tgi, where no other adapter offers them."""
