// What a picture of this project says of itself: the same as shared/image_codec.py reads.

const MARK = /<sdr:provenance>(.*?)<\/sdr:provenance>/s;
const ENTITIES = { "&lt;": "<", "&gt;": ">", "&amp;": "&" };

/** {request, model, model_fingerprint, dtype} of a PNG, JPEG or WebP file, or null. */
export async function readProvenance(file) {
  // XMP stands in all three formats as it is.
  const found = (await file.text()).match(MARK);
  if (!found) return null;
  try {
    return JSON.parse(found[1].replace(/&(lt|gt|amp);/g, (entity) => ENTITIES[entity]));
  } catch {
    return null;
  }
}
