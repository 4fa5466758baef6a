"""How urgent others say a study is: asked of a modality worklist, heard from HL7 orders."""
