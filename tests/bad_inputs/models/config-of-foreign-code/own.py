import os

os.mkdir('the-payload-has-run')
