"""Where in the image an object may be."""

from detectron2.modeling.proposal_generator.rpn import RPN, StandardRPNHead

__all__ = ["RPN", "StandardRPNHead"]
